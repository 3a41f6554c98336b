//! What a generated model looks like as the items of a save, and which bytes belong into the files of its plan.

use longshore_proto::v1;
use longshore_testkit::Content;
use longshore_testkit::content::Segment;
use longshore_testkit::modelgen::{ExpectedTensor, Model};
use longshore_types::{Code, Error, Result};

/// A tensor of the model as an item: `group/name` is in a group.
pub fn item_of(tensor: &ExpectedTensor) -> v1::SaveTensor {
    let (group, name) = tensor.name.rsplit_once('/').unwrap_or(("", &tensor.name));
    v1::SaveTensor {
        group: group.to_owned(),
        name: name.to_owned(),
        dtype: tensor.dtype.clone(),
        shape: tensor.shape.clone(),
        ..Default::default()
    }
}

/// Items of `world` ranks: tensors are dealt out in turn, files are all of rank 0.
pub fn items_of(model: &Model, world: u32) -> Vec<v1::RankItems> {
    let items = (0..world).map(|rank| {
        let own = model.tensors.iter().skip(rank as usize).step_by(world.max(1) as usize);
        let plain = model.files.iter().filter(|(name, _)| rank == 0 && !made(name));
        v1::RankItems {
            rank,
            tensors: own.map(item_of).collect(),
            files: plain.map(|(name, c)| v1::SaveFile { name: name.clone(), size_bytes: c.len_bytes() }).collect(),
            aliases: Vec::new(),
        }
    });
    items.collect()
}

/// Weights come as tensors, and the index is made from them.
fn made(name: &str) -> bool {
    name.ends_with(".safetensors") || name == longshore_testkit::modelgen::INDEX_NAME
}

/// The bytes of every file of a plan.
///
/// # Errors
/// [`Code::InvalidArgument`] when the plan holds what the model does not.
pub fn plan_contents(plan: &v1::SavePlan, model: &Model) -> Result<Vec<Content>> {
    plan.files.iter().map(|file| file_content(file, model)).collect()
}

fn file_content(file: &v1::PlannedFile, model: &Model) -> Result<Content> {
    let content = if file.header.is_empty() {
        model.file(&file.name).cloned().ok_or_else(|| missing(&file.name))?
    } else {
        let mut segments = vec![Segment::Bytes(file.header.clone().into())];
        for planned in &file.tensors {
            let item = planned.tensor.as_ref().ok_or_else(|| missing("a tensor without a name"))?;
            segments.extend(piece_content(item, model)?.segments().cloned());
        }
        Content::of(segments)
    };
    match content.len_bytes() == file.size_bytes {
        true => Ok(content),
        false => {
            let message = format!("{} has {} bytes, planned are {}", file.name, content.len_bytes(), file.size_bytes);
            Err(Error::new(Code::InvalidArgument, message))
        }
    }
}

/// The bytes of a tensor, or of some of its rows.
///
/// # Errors
/// [`Code::InvalidArgument`] when the model has no such tensor, or the piece is not made of whole rows.
pub fn piece_content(item: &v1::SaveTensor, model: &Model) -> Result<Content> {
    let name = match item.group.as_str() {
        "" => item.name.clone(),
        group => format!("{group}/{}", item.name),
    };
    let tensor = model.tensor(&name).ok_or_else(|| missing(&name))?;
    if item.start.is_empty() {
        return Ok(tensor.content.clone());
    }
    let is_rows = item.start[1..].iter().all(|start| *start == 0) && item.piece_shape[1..] == tensor.shape[1..];
    let rows = tensor.shape.first().copied().filter(|rows| is_rows && *rows > 0);
    let row_bytes = tensor.content.len_bytes() / rows.ok_or_else(|| missing(&format!("such a piece of {name}")))?;
    let start = item.start[0] * row_bytes;
    Ok(Content::from(tensor.content.read(start..start + item.piece_shape[0] * row_bytes)))
}

fn missing(what: &str) -> Error {
    Error::new(Code::InvalidArgument, format!("the model does not have {what}"))
}
