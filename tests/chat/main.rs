//! Prompts and answers: chat templates, harmony, and the parsers of what models generate.
//!
//! The modules are marked as tests so that the lints for tests apply to their helper functions too.

#[cfg(test)]
mod at_hand;
#[cfg(test)]
mod constraints;
#[cfg(test)]
mod harmony_parser;
#[cfg(test)]
mod harmony_render;
#[cfg(test)]
mod templates;
