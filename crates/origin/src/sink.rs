//! Where a caller wants the bytes of a read.

use std::io::IoSliceMut;

use longshore_types::Result;

/// Memory that the bytes of one read are received into, in order. Ask [`Sink::spare`], fill its front, say how much with
/// [`Sink::filled`], and ask again.
pub trait Sink {
    /// The memory for the next bytes: at most `len_max` in all, more than 0, and no more than there is room for. It may be
    /// less than asked for. Nothing in it counts until [`Sink::filled`] is called.
    fn spare(&mut self, len_max: usize) -> Vec<IoSliceMut<'_>>;

    /// The first `len` bytes of what [`Sink::spare`] gave last are there now. They are still in the core's cache: what is
    /// to be done with every byte is best done here.
    ///
    /// # Errors
    /// Whatever makes further bytes useless; the read ends with it.
    fn filled(&mut self, len: usize) -> Result<()>;
}

/// Fills the slice from its front. It must be as long as the range that is read.
impl Sink for &mut [u8] {
    fn spare(&mut self, len_max: usize) -> Vec<IoSliceMut<'_>> {
        let len = self.len().min(len_max);
        vec![IoSliceMut::new(&mut self[..len])]
    }

    fn filled(&mut self, len: usize) -> Result<()> {
        *self = &mut std::mem::take(self)[len..];
        Ok(())
    }
}

/// Copies as much of `from` as fits, and says how much that was.
pub(crate) fn scatter(mut from: &[u8], slices: &mut [IoSliceMut<'_>]) -> usize {
    let whole = from.len();
    for slice in slices {
        let count = slice.len().min(from.len());
        slice[..count].copy_from_slice(&from[..count]);
        from = &from[count..];
    }
    whole - from.len()
}
