"""A checkpoint's vocabulary: candidates for new tokens, extending, trimming."""
