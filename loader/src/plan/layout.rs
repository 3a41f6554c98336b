//! Where every tensor and every plain file lies in the regions, and the copies that bring it there.

use longshore_types::header::tensor_bytes;
use longshore_types::{Code, Error, Manifest, Result, Tensor};

use super::shares::{Pieces, Share, Shares};
use crate::parallel::Parallel;

/// A piece of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which region of the model.
    pub region: u32,
    /// First byte in the region.
    pub offset_bytes: u64,
    /// Number of bytes; may be zero.
    pub length_bytes: u64,
}

/// A tensor of the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Index into the tensors of the manifest.
    pub tensor: usize,
    /// Where it lies.
    pub place: Place,
    /// Its shape where that is not the manifest's: a rank's piece of a tensor that is split.
    pub shape: Option<Box<[u64]>>,
}

/// A tensor as it is in memory, with what the manifest says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedTensor<'a> {
    /// The tensor in the file; its shape there is that of all ranks together.
    pub tensor: &'a Tensor,
    /// The shape in memory.
    pub shape: &'a [u64],
    /// Where it lies.
    pub place: Place,
}

/// Equal pieces of one file at equal distances that go to consecutive places; most often a single one. Sorted by file
/// and offset, never overlapping, never interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRange {
    /// Index into the files of the manifest.
    pub file: usize,
    /// First byte in the file.
    pub file_offset_bytes: u64,
    /// Which region of the model.
    pub region: u32,
    /// First byte in the region.
    pub region_offset_bytes: u64,
    /// Bytes of each piece, at least one.
    pub row_bytes: u64,
    /// Bytes of the file between two pieces; 0 when there is only one.
    pub skip_bytes: u64,
    /// Number of pieces, at least one.
    pub rows: u64,
}

impl CopyRange {
    /// The end in the file, of the last piece.
    pub fn file_end_bytes(&self) -> u64 {
        self.file_offset_bytes + self.row_bytes * self.rows + self.skip_bytes * (self.rows - 1)
    }
}

/// Where the files that are no tensor files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideFiles {
    /// Into the region of the tensors, in file order.
    WithTensors,
    /// Into a second region, which is in host memory whatever the device of the tensors is.
    Apart,
}

/// The regions of a model, or of one rank's part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of each region: the end of its last piece. The first is that of the tensors; a second one is there only
    /// when side files are apart and there are any.
    pub sizes_bytes: Vec<u64>,
    /// The tensors, in the manifest's order. Experts of other ranks are not among them.
    pub tensors: Vec<TensorPlace>,
    /// The files that are delivered as bytes: index into the files of the manifest, and where each lies.
    pub files: Vec<(usize, Place)>,
    /// What has to be copied, neighbours merged. Empty in a layout that is in memory already.
    pub copies: Vec<CopyRange>,
    /// What a user should know: a rule that decides for no tensor.
    pub warnings: Vec<String>,
}

impl Layout {
    /// Lays out plain files and tensors, or one rank's part of these, in file order, each at a multiple of
    /// `alignment_bytes`.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when tensors are out of order, overlap, leave their file, or disagree with dtype and shape:
    /// the manifest may have come over the network, so it is checked again where memory depends on it.
    /// [`Code::InvalidArgument`] naming the tensor that cannot be split as `parallel` says.
    pub fn new(
        manifest: &Manifest,
        parallel: Option<&Parallel>,
        alignment_bytes: u64,
        side_files: SideFiles,
    ) -> Result<Layout> {
        let mut shares = parallel.map(|parallel| Shares::new(manifest, parallel)).transpose()?;
        let mut writer = Writer::new(alignment_bytes, side_files);
        if shares.is_some() {
            // A rank has about a copy a tensor; all of a model has a few.
            writer.copies.reserve(manifest.tensors.len());
        }
        let mut layout_tensors = Vec::with_capacity(manifest.tensors.len());
        let mut layout_files = Vec::new();
        let mut tensors = manifest.tensors.iter().enumerate().peekable();
        for (file, entry) in manifest.files.iter().enumerate() {
            let size_bytes = entry.artifact.size_bytes();
            if !entry.is_tensors {
                layout_files.push((file, writer.place(writer.of_files, file, &Pieces::one(0, size_bytes))?));
                continue;
            }
            let mut end = 0;
            while let Some((index, tensor)) = tensors.next_if(|(_, tensor)| tensor.extent.file == file) {
                end = check_tensor(tensor, end, size_bytes)?;
                let share = match &mut shares {
                    Some(shares) => shares.of(index, tensor)?,
                    None => Share::whole(tensor),
                };
                let Share::Here { pieces, shape } = share else { continue };
                let place = writer.place(TENSORS, file, &pieces)?;
                layout_tensors.push(TensorPlace { tensor: index, place, shape });
            }
        }
        if let Some((_, stray)) = tensors.next() {
            return Err(corrupt(stray, "is out of file order, or in a file without tensors"));
        }
        Ok(Layout {
            sizes_bytes: writer.ends,
            tensors: layout_tensors,
            files: layout_files,
            copies: writer.copies,
            warnings: shares.map(Shares::into_warnings).unwrap_or_default(),
        })
    }

    /// The tensors with what the manifest says of them: the one that the layout was made from.
    pub fn tensors_of<'a>(&'a self, manifest: &'a Manifest) -> impl ExactSizeIterator<Item = PlacedTensor<'a>> {
        self.tensors.iter().map(|TensorPlace { tensor, place, shape }| {
            let tensor = &manifest.tensors[*tensor];
            PlacedTensor { tensor, shape: shape.as_deref().unwrap_or(&tensor.shape), place: *place }
        })
    }
}

/// Gives the end of the tensor in its file.
fn check_tensor(tensor: &Tensor, end_before: u64, file_bytes: u64) -> Result<u64> {
    let extent = tensor.extent;
    let end = extent.offset_bytes.checked_add(extent.length_bytes).filter(|&end| end <= file_bytes);
    let end = end.ok_or_else(|| corrupt(tensor, "goes beyond the end of its file"))?;
    if extent.offset_bytes < end_before {
        return Err(corrupt(tensor, "overlaps the tensor before it"));
    }
    match tensor.dtype.map(|dtype| tensor_bytes(dtype, &tensor.shape)) {
        Some(bytes) if bytes != Some(extent.length_bytes) => Err(corrupt(tensor, "disagrees with its dtype and shape")),
        _ => Ok(end),
    }
}

fn corrupt(tensor: &Tensor, reason: &str) -> Error {
    Error::new(Code::Corrupt, format!("tensor {:?} of the manifest {reason}", tensor.name))
}

/// The region of the tensors.
const TENSORS: u32 = 0;

struct Writer {
    alignment_bytes: u64,
    ends: Vec<u64>,
    of_files: u32,
    copies: Vec<CopyRange>,
}

impl Writer {
    fn new(alignment_bytes: u64, side_files: SideFiles) -> Self {
        let of_files = match side_files {
            SideFiles::WithTensors => TENSORS,
            SideFiles::Apart => TENSORS + 1,
        };
        Writer { alignment_bytes: alignment_bytes.max(1), ends: vec![0], of_files, copies: Vec::new() }
    }

    /// The next place of the region, for pieces of a file one behind the other.
    fn place(&mut self, region: u32, file: usize, pieces: &Pieces) -> Result<Place> {
        let index = region as usize;
        if index >= self.ends.len() {
            self.ends.resize(index + 1, 0);
        }
        let length_bytes = pieces.len_bytes();
        let fits = self.ends[index].checked_next_multiple_of(self.alignment_bytes);
        let fits = fits.and_then(|offset| Some((offset, offset.checked_add(length_bytes)?)));
        let (offset_bytes, end) =
            fits.ok_or_else(|| Error::new(Code::Corrupt, "the model has more bytes than an address can name"))?;
        self.ends[index] = end;
        let mut region_offset_bytes = offset_bytes;
        pieces.for_each_rows(|rows| {
            self.copy(CopyRange {
                file,
                file_offset_bytes: rows.start_bytes,
                region,
                region_offset_bytes,
                row_bytes: rows.row_bytes,
                skip_bytes: rows.skip_bytes,
                rows: rows.count,
            });
            region_offset_bytes += rows.row_bytes * rows.count;
        });
        Ok(Place { region, offset_bytes, length_bytes })
    }

    /// Dense files become one copy: a piece that continues the last one on both sides is merged into it.
    fn copy(&mut self, piece: CopyRange) {
        if let Some(last) = self.copies.last_mut()
            && (last.file, last.region, last.rows, piece.rows) == (piece.file, piece.region, 1, 1)
            && last.file_offset_bytes + last.row_bytes == piece.file_offset_bytes
            && last.region_offset_bytes + last.row_bytes == piece.region_offset_bytes
        {
            last.row_bytes += piece.row_bytes;
        } else {
            self.copies.push(piece);
        }
    }
}
