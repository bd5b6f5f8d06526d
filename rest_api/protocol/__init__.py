"""The public language of the edge, and the effects that a session returns. No I/O."""
