//! Streaming decode against decoding all at once.
