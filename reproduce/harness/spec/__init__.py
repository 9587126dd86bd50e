"""What runs are compared with: tables, claims, margins, recorded numbers."""
