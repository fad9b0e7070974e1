"""What has something in common: where the rules may not take two operands as independent."""
