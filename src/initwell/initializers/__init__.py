"""Pure descriptions of initial weights: a layout goes in, a distribution comes out; nothing is drawn here."""
