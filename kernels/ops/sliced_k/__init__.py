"""Products in which a block has several partitions of a tile at once."""
