"""Tokenizers, which turn expressions into token ids."""
