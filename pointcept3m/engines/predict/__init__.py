"""The classes of one's own scan: from a file to a file (`command`), or from arrays to arrays (`predictor.load`)."""
