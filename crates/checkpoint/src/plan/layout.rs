//! From what the ranks have to files: who writes which piece, in which file, at which offset.

use std::collections::{BTreeMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use longshore_types::checkpoint::AttemptId;
use longshore_types::{Result, names as type_names};

use super::header::{self, Entry};
use super::items::{Items, Plain, Whole};
use super::names::{INDEX_NAME, check_distinct, invalid, tensor_file};
use super::{PlanRequest, PlannedFile, PlannedTensor, SavePlan, SaveTensor, check};

/// Most bytes of a header that this planner makes; the format allows 100 MB.
const HEADER_BYTES_MAX: u64 = 64 << 20;

/// Lays out a checkpoint from a request that has the items of all ranks.
///
/// # Errors
/// `InvalidArgument`, naming the tensor, file or rank and what is wrong with it.
pub fn layout(mut request: PlanRequest) -> Result<SavePlan> {
    request.ranks.sort_by_key(|rank| rank.rank);
    check::request(&request)?;
    let items = Items::collect(&request.ranks)?;
    let mut shares = Shares::new(request.world_size, request.options.as_given);
    let places = shares.places(&items);
    let mut files = tensor_files(&items.tensors, &places, request.options.file_bytes_max());
    let has_index = request.options.hf_index && files.iter().any(|file| type_names::folder_of(&file.name).is_empty());
    for file in &items.files {
        if has_index && file.name == INDEX_NAME {
            return Err(invalid(format!("the file {INDEX_NAME:?} is made by the save: leave it out")));
        }
        files.push(shares.plain_file(file));
    }
    if files.is_empty() {
        return Err(invalid("there is nothing to save: no rank has a tensor or a file"));
    }
    check_distinct(files.iter().map(|file| file.name.as_str()))?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let plan = SavePlan {
        uri: request.uri,
        step: request.step,
        attempt: AttemptId::from_bytes(uuid::Uuid::new_v4().into_bytes()),
        world_size: request.world_size,
        options: request.options,
        files,
        aliases: items.aliases,
        created_ms: created.as_millis() as u64,
    };
    check::sizes(&plan)?;
    Ok(plan)
}

/// Which piece of which tensor a rank writes: indexes into the items, in their order.
type Places = BTreeMap<u32, Vec<(usize, usize)>>;

/// Bytes that each rank has got so far.
struct Shares {
    bytes: Vec<u64>,
    as_given: bool,
}

impl Shares {
    fn new(world_size: u32, as_given: bool) -> Self {
        Shares { bytes: vec![0; world_size as usize], as_given }
    }

    /// Gives each piece to one of the ranks that have it: first what only one rank has, then the largest pieces, each to
    /// the rank that has least so far.
    fn places(&mut self, items: &Items<'_>) -> Places {
        let mut order: Vec<(usize, usize)> = items
            .tensors
            .iter()
            .enumerate()
            .flat_map(|(tensor, whole)| (0..whole.pieces.len()).map(move |piece| (tensor, piece)))
            .collect();
        let piece = |&(tensor, piece): &(usize, usize)| &items.tensors[tensor].pieces[piece];
        order.sort_by_key(|at| (piece(at).ranks.len() > 1, std::cmp::Reverse(piece(at).length_bytes), *at));
        let mut places = Places::new();
        for at in order {
            let rank = self.take(&piece(&at).ranks, piece(&at).length_bytes);
            places.entry(rank).or_default().push(at);
        }
        places
    }

    fn take(&mut self, ranks: &[u32], length_bytes: u64) -> u32 {
        let first = ranks.first().copied().unwrap_or_default();
        let rank = if self.as_given {
            first
        } else {
            ranks.iter().copied().min_by_key(|&rank| self.bytes[rank as usize]).unwrap_or(first)
        };
        let share = &mut self.bytes[rank as usize];
        *share = share.saturating_add(length_bytes);
        rank
    }

    fn plain_file(&mut self, file: &Plain<'_>) -> PlannedFile {
        PlannedFile {
            name: file.name.to_owned(),
            rank: self.take(&file.ranks, file.size_bytes),
            size_bytes: file.size_bytes,
            header: vec![],
            tensors: vec![],
        }
    }
}

/// A piece on its way into a file.
struct Member<'a> {
    whole: &'a Whole<'a>,
    /// Place in the items.
    at: (usize, usize),
    /// Name in the file.
    name: String,
}

impl Member<'_> {
    fn length_bytes(&self) -> u64 {
        self.whole.pieces[self.at.1].length_bytes
    }

    fn is_whole(&self) -> bool {
        self.whole.pieces.len() == 1
    }

    fn tensor(&self) -> SaveTensor {
        let piece = &self.whole.pieces[self.at.1];
        let (start, piece_shape) =
            if self.is_whole() { (vec![], vec![]) } else { (piece.start.clone(), piece.shape.clone()) };
        SaveTensor {
            group: self.whole.group.to_owned(),
            name: self.whole.name.to_owned(),
            dtype: self.whole.dtype_name.to_owned(),
            shape: self.whole.shape.to_vec(),
            start,
            piece_shape,
        }
    }
}

/// All tensor files, ordered by group, rank and place in the items; each group's are numbered through.
fn tensor_files(tensors: &[Whole<'_>], places: &Places, bytes_max: u64) -> Vec<PlannedFile> {
    let names: HashSet<(&str, &str)> = tensors.iter().map(|whole| (whole.group, whole.name)).collect();
    let mut by_group: BTreeMap<&str, BTreeMap<u32, Vec<Member<'_>>>> = BTreeMap::new();
    for (&rank, pieces) in places {
        for &(tensor, piece) in pieces {
            let whole = &tensors[tensor];
            let member = Member { whole, at: (tensor, piece), name: name_in_file(whole, piece, &names) };
            by_group.entry(whole.group).or_default().entry(rank).or_default().push(member);
        }
    }
    let mut files = vec![];
    for (group, ranks) in by_group {
        let mut of_group = vec![];
        for (rank, mut members) in ranks {
            order(&mut members);
            of_group.extend(cut(members, bytes_max).into_iter().map(|members| planned_file(rank, &members)));
        }
        let count = of_group.len();
        for (number, file) in of_group.iter_mut().enumerate() {
            file.name = tensor_file(group, number + 1, count);
        }
        files.extend(of_group);
    }
    files
}

/// Wide dtypes first, so that without any hole each tensor is aligned to its dtype; otherwise in the order of the items.
fn order(members: &mut [Member<'_>]) {
    members.sort_by_key(|member| (std::cmp::Reverse(member.whole.dtype.bitsize()), member.at));
}

/// The name in its group when the tensor is whole, else `name#i` for its i-th piece.
fn name_in_file(whole: &Whole<'_>, piece: usize, names: &HashSet<(&str, &str)>) -> String {
    if whole.pieces.len() == 1 {
        return whole.name.to_owned();
    }
    let mut name = format!("{}#{piece}", whole.name);
    while names.contains(&(whole.group, name.as_str())) {
        name.push('#');
    }
    name
}

/// Cuts a rank's members into files of at most `bytes_max`; one that is larger is alone.
fn cut(members: Vec<Member<'_>>, bytes_max: u64) -> Vec<Vec<Member<'_>>> {
    let mut files: Vec<Vec<Member<'_>>> = vec![];
    let (mut data, mut head) = (0u64, 0u64);
    for member in members {
        let entry = header::entry_bytes_max(&member.name, member.whole.dtype_name, member.whole.shape.len());
        let length = member.length_bytes();
        let fits =
            data.saturating_add(length).saturating_add(head + entry) <= bytes_max && head + entry <= HEADER_BYTES_MAX;
        match files.last_mut() {
            Some(file) if fits => file.push(member),
            _ => {
                files.push(vec![member]);
                (data, head) = (0, HEAD_BYTES);
            }
        }
        data = data.saturating_add(length);
        head += entry;
    }
    files
}

/// Bytes of a header beside its entries, at most.
const HEAD_BYTES: u64 = 64;

fn planned_file(rank: u32, members: &[Member<'_>]) -> PlannedFile {
    let header = header::build(members.iter().map(|member| Entry {
        name: &member.name,
        dtype: member.whole.dtype_name,
        shape: &member.whole.pieces[member.at.1].shape,
        length_bytes: member.length_bytes(),
    }));
    let mut at = header.len() as u64;
    let mut tensors = Vec::with_capacity(members.len());
    for member in members {
        let length_bytes = member.length_bytes();
        tensors.push(PlannedTensor { tensor: member.tensor(), offset_bytes: at, length_bytes });
        at = at.saturating_add(length_bytes);
    }
    PlannedFile { name: String::new(), rank, size_bytes: at, header, tensors }
}
