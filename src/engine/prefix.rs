//! Names for the content of cache blocks, so that sequences with a common prefix can share them.
//!
//! What a block holds follows from every token up to its end. Its key is therefore SHA-256 over its own tokens and the
//! key of the block before it; the first block follows on the salt. Two blocks with one key hold the same bytes: a
//! collision would be one of SHA-256.

use sha2::{Digest, Sha256};

/// Name of what a full block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey([u8; 32]);

/// What precedes the first block, without a salt and with one; a block's own tag keeps a salt from posing as tokens.
const UNSALTED: u8 = 0;
const SALTED: u8 = 1;
const BLOCK: u8 = 2;

/// Keys of a sequence's full blocks, as far as they have been computed.
#[derive(Clone, Debug)]
pub struct KeyChain {
    block_size: usize,
    root: BlockKey,
    keys: Vec<BlockKey>,
}

impl KeyChain {
    /// An empty chain for blocks of `block_size` positions. Sequences share blocks only when their salts agree.
    pub fn new(block_size: usize, salt: Option<&str>) -> Self {
        let hasher = match salt {
            None => Sha256::new_with_prefix([UNSALTED]),
            Some(salt) => Sha256::new_with_prefix([SALTED]).chain_update(salt),
        };
        Self { block_size: block_size.max(1), root: BlockKey(hasher.finalize().into()), keys: vec![] }
    }

    /// Makes room for the keys of a sequence of `tokens` tokens.
    pub fn reserve(&mut self, tokens: usize) {
        self.keys.reserve_exact((tokens / self.block_size).saturating_sub(self.keys.len()));
    }

    /// Computes the keys of every full block of `tokens`, which begin with the tokens of the calls before.
    pub fn extend(&mut self, tokens: &[u32]) {
        for block in tokens.chunks_exact(self.block_size).skip(self.keys.len()) {
            let parent = self.keys.last().unwrap_or(&self.root);
            let mut hasher = Sha256::new_with_prefix([BLOCK]).chain_update(parent.0);
            for token in block {
                hasher.update(token.to_le_bytes());
            }
            self.keys.push(BlockKey(hasher.finalize().into()));
        }
    }

    /// The keys computed so far, of blocks from position 0.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// Keys of the full blocks among the first `tokens` tokens, as far as computed.
    pub fn filled(&self, tokens: usize) -> &[BlockKey] {
        &self.keys[..(tokens / self.block_size).min(self.keys.len())]
    }

    /// Keys of the blocks a sequence of `tokens` tokens may take from the cache: its last token is always computed.
    pub fn reusable(&self, tokens: usize) -> &[BlockKey] {
        self.filled(tokens.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(tokens: &[u32], salt: Option<&str>) -> Vec<BlockKey> {
        let mut chain = KeyChain::new(2, salt);
        chain.extend(tokens);
        chain.keys().to_vec()
    }

    #[test]
    fn a_key_names_everything_before_it() {
        let all = keys(&[1, 2, 3, 4, 5], None);
        assert_eq!(all.len(), 2, "the last block is not full");
        assert_eq!(keys(&[1, 2, 3, 9], None)[0], all[0]);
        assert_ne!(keys(&[1, 2, 3, 9], None)[1], all[1]);
        assert_ne!(keys(&[9, 2, 3, 4], None)[1], all[1], "same tokens after another block");
        assert_ne!(keys(&[3, 4], None)[0], all[1], "same tokens at another place");
    }

    #[test]
    fn salts_part_what_tokens_join() {
        let salts = [None, Some(""), Some("a"), Some("b")];
        let first: Vec<BlockKey> = salts.map(|salt| keys(&[1, 2], salt)[0]).to_vec();
        let distinct: std::collections::HashSet<&BlockKey> = first.iter().collect();
        assert_eq!(distinct.len(), salts.len());
        assert_eq!(keys(&[1, 2], Some("a"))[0], first[2]);
    }

    #[test]
    fn a_chain_grows_as_if_made_at_once() {
        let tokens: Vec<u32> = (0..11).collect();
        let mut chain = KeyChain::new(2, Some("s"));
        for length in 0..=tokens.len() {
            chain.extend(&tokens[..length]);
            assert_eq!(chain.keys().len(), length / 2);
        }
        assert_eq!(chain.keys(), keys(&tokens, Some("s")));
    }

    #[test]
    fn the_last_token_is_never_reused() {
        let mut chain = KeyChain::new(2, None);
        chain.extend(&[1, 2, 3, 4]);
        assert_eq!(chain.reusable(5).len(), 2);
        assert_eq!(chain.reusable(4).len(), 1);
        assert_eq!(chain.reusable(2).len(), 0);
        assert_eq!(chain.reusable(0).len(), 0);
    }
}
