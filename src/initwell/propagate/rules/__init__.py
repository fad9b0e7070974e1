"""What each op does to a Signal: one file a family, one function a rule, each with its derivation."""
