"""What a person sees: tables, pictures, one HTML page."""
