"""What makes data: a TFDS builder of E2E, and the text that `tiny` was trained on."""
