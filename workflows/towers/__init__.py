"""The networks that encode: CLIP's text and image towers, the text encoders of pipelines, and the autoencoder."""
