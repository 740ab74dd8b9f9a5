"""The rows of many requests, denoised together by one `StepEngine` on a thread of its own."""
