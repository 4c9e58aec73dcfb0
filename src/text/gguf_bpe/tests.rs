//! Metadata that breaks a rule is refused with the rule's name.
