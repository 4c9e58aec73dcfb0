//! Decoders of the quantised storage formats.
