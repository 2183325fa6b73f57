"""What is trained and how: split, loss, optimizer, step."""
