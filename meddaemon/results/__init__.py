"""Result objects: encoders (SEG, SR), the gate that checks what they wrote, and delivery to the PACS."""
