"""The lowering passes: from scheduled nests of Blocks to flat loops that a code generator prints, one file each."""
