"""One file a scheme: how each rule of the field chooses an initializer for a parameter."""
