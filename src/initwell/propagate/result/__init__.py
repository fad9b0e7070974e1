"""What a walk comes to: rows, growth by block, where samples become alike, and charts."""
