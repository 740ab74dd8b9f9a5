"""The data sets that need no download: scanned digits and drawn shapes."""
