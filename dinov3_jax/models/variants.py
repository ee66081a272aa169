"""The table of all sizes (paper, table 2 and section 5)."""

REFERENCE_ARCHITECTURES = {
    "vit_small": dict(width=384, depth=12, num_heads=6),
    "vit_base": dict(width=768, depth=12, num_heads=12),
    "vit_large": dict(width=1024, depth=24, num_heads=16),
    "vit_so400m": dict(width=1152, depth=27, num_heads=18, ffn_ratio=3.777777778),
    "vit_huge2": dict(width=1280, depth=32, num_heads=20),
    "vit_giant2": dict(width=1536, depth=40, num_heads=24),
    "vit_7b": dict(width=4096, depth=40, num_heads=32, ffn_ratio=3.0),
}
"""What `student.arch` means in the reference's training settings."""
