//! Where every tensor and every plain file lies in the regions, and the copies that bring it there.

use longshore_types::header::tensor_bytes;
use longshore_types::{Code, Error, Manifest, Result, Tensor};

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

/// Bytes of one file that go to one place, contiguous on both sides. Sorted by file and offset, never overlapping.
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
    /// Number of bytes, at least one.
    pub length_bytes: u64,
}

/// Where the files that are no tensor files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideFiles {
    /// Into the region of the tensors, in file order.
    WithTensors,
    /// Into a second region, which is in host memory whatever the device of the tensors is.
    Apart,
}

/// The regions of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of each region: the end of its last piece. The first is that of the tensors; a second one is there only
    /// when side files are apart and there are any.
    pub sizes_bytes: Vec<u64>,
    /// One for each tensor of the manifest, in its order.
    pub tensors: Vec<Place>,
    /// The files that are delivered as bytes: index into the files of the manifest, and where each lies.
    pub files: Vec<(usize, Place)>,
    /// What has to be copied, neighbours merged.
    pub copies: Vec<CopyRange>,
}

impl Layout {
    /// Lays out all tensors and plain files in file order, each at a multiple of `alignment_bytes`.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when tensors are out of order, overlap, leave their file, or disagree with dtype and shape:
    /// the manifest may have come over the network, so it is checked again where memory depends on it.
    pub fn new(manifest: &Manifest, alignment_bytes: u64, side_files: SideFiles) -> Result<Layout> {
        let mut writer = Writer::new(alignment_bytes, side_files);
        let mut layout_tensors = Vec::with_capacity(manifest.tensors.len());
        let mut layout_files = Vec::new();
        let mut tensors = manifest.tensors.iter().peekable();
        for (file, entry) in manifest.files.iter().enumerate() {
            let size_bytes = entry.artifact.size_bytes();
            if !entry.is_tensors {
                layout_files.push((file, writer.place(writer.of_files, file, 0, size_bytes)?));
                continue;
            }
            let mut end = 0;
            while let Some(tensor) = tensors.next_if(|tensor| tensor.extent.file == file) {
                end = check_tensor(tensor, end, size_bytes)?;
                let extent = tensor.extent;
                layout_tensors.push(writer.place(TENSORS, file, extent.offset_bytes, extent.length_bytes)?);
            }
        }
        if let Some(stray) = tensors.next() {
            return Err(corrupt(stray, "is out of file order, or in a file without tensors"));
        }
        Ok(Layout { sizes_bytes: writer.ends, tensors: layout_tensors, files: layout_files, copies: writer.copies })
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

    fn place(&mut self, region: u32, file: usize, file_offset_bytes: u64, length_bytes: u64) -> Result<Place> {
        let index = region as usize;
        if index >= self.ends.len() {
            self.ends.resize(index + 1, 0);
        }
        let fits = self.ends[index].checked_next_multiple_of(self.alignment_bytes);
        let fits = fits.and_then(|offset| Some((offset, offset.checked_add(length_bytes)?)));
        let (offset_bytes, end) =
            fits.ok_or_else(|| Error::new(Code::Corrupt, "the model has more bytes than an address can name"))?;
        self.ends[index] = end;
        if length_bytes > 0 {
            self.copy(CopyRange { file, file_offset_bytes, region, region_offset_bytes: offset_bytes, length_bytes });
        }
        Ok(Place { region, offset_bytes, length_bytes })
    }

    /// Dense files become one copy: a piece that continues the last one on both sides is merged into it.
    fn copy(&mut self, piece: CopyRange) {
        if let Some(last) = self.copies.last_mut()
            && (last.file, last.region) == (piece.file, piece.region)
            && last.file_offset_bytes + last.length_bytes == piece.file_offset_bytes
            && last.region_offset_bytes + last.length_bytes == piece.region_offset_bytes
        {
            last.length_bytes += piece.length_bytes;
        } else {
            self.copies.push(piece);
        }
    }
}
