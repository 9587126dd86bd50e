"""What is asked: tables, claims, margins, recorded numbers."""
