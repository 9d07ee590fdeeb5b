//! What a device may trade.

/// Trades of speed for the same bits each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Options {
    /// Whether few queries over many keys may be cut over the keys.
    pub(crate) split_decode: bool,
    /// Whether large products may be computed by the vendor's library.
    pub(crate) library_products: bool,
}
