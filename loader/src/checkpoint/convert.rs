//! Plans, statuses and checkpoints as messages, and back. What comes from a message is taken as it is here: the planner and
//! the engine check it.

mod catalog;

use longshore_checkpoint::{
    PlanRequest, PlannedFile, PlannedTensor, RankItems, RankStatus, SaveFile, SaveOptions, SavePlan, SaveState,
    SaveStatus, SaveTensor,
};
use longshore_proto::v1;
use longshore_types::checkpoint::{Alias, AttemptId};
use longshore_types::{Code, Error, Result};

pub(super) use catalog::{checkpoint, deleted, list, swept};

/// The request of some of the ranks.
pub(super) fn plan_request(message: v1::PlanSaveRequest) -> PlanRequest {
    PlanRequest {
        uri: message.uri,
        step: message.step,
        world_size: message.world_size,
        ranks: message.ranks.into_iter().map(items).collect(),
        options: options(message.options),
        join_timeout_ms: message.join_timeout_ms,
    }
}

fn items(message: v1::RankItems) -> RankItems {
    let file = |file: v1::SaveFile| SaveFile { name: file.name, size_bytes: file.size_bytes };
    RankItems {
        rank: message.rank,
        tensors: message.tensors.into_iter().map(tensor).collect(),
        files: message.files.into_iter().map(file).collect(),
        aliases: message.aliases.into_iter().map(alias).collect(),
    }
}

fn tensor(message: v1::SaveTensor) -> SaveTensor {
    let v1::SaveTensor { group, name, dtype, shape, start, piece_shape } = message;
    SaveTensor { group, name, dtype, shape, start, piece_shape }
}

fn alias(message: v1::TensorAlias) -> Alias {
    let v1::TensorAlias { group, name, target } = message;
    Alias { group, name, target }
}

/// Options; nothing said is the defaults.
pub(super) fn options(message: Option<v1::SaveOptions>) -> SaveOptions {
    let message = message.unwrap_or_default();
    SaveOptions {
        keep: message.keep,
        peer_copies: message.peer_copies,
        delta: message.delta,
        delta_depth_max: message.delta_depth_max,
        file_bytes_max: message.file_bytes_max,
        stage_timeout_ms: message.stage_timeout_ms,
        refuse_when_full: message.refuse_when_full,
        metadata: message.metadata.into_iter().collect(),
        hf_index: message.hf_index,
        as_given: message.as_given,
    }
}

/// A plan that comes back from a client.
///
/// # Errors
/// [`Code::InvalidArgument`] for an attempt that is no id.
pub(super) fn plan_from(message: v1::SavePlan) -> Result<SavePlan> {
    let planned_tensor = |planned: v1::PlannedTensor| {
        let place = (planned.offset_bytes, planned.length_bytes);
        let none = || Error::new(Code::InvalidArgument, "the plan has an extent without a tensor");
        let (offset_bytes, length_bytes) = place;
        Ok(PlannedTensor { tensor: tensor(planned.tensor.ok_or_else(none)?), offset_bytes, length_bytes })
    };
    let file = |file: v1::PlannedFile| {
        Ok(PlannedFile {
            name: file.name,
            rank: file.rank,
            size_bytes: file.size_bytes,
            header: file.header,
            tensors: file.tensors.into_iter().map(planned_tensor).collect::<Result<_>>()?,
        })
    };
    Ok(SavePlan {
        uri: message.uri,
        step: message.step,
        attempt: attempt(&message.attempt)?,
        world_size: message.world_size,
        options: options(message.options),
        files: message.files.into_iter().map(file).collect::<Result<_>>()?,
        aliases: message.aliases.into_iter().map(alias).collect(),
        created_ms: message.created_ms,
    })
}

/// The id of an attempt.
///
/// # Errors
/// [`Code::InvalidArgument`].
pub(super) fn attempt(text: &str) -> Result<AttemptId> {
    AttemptId::parse(text)
}

/// A plan for the ranks.
pub(super) fn plan(plan: &SavePlan) -> v1::SavePlan {
    v1::SavePlan {
        uri: plan.uri.clone(),
        step: plan.step,
        attempt: plan.attempt.to_string(),
        world_size: plan.world_size,
        options: Some(options_to(&plan.options)),
        files: plan.files.iter().map(planned_file).collect(),
        aliases: plan.aliases.iter().map(alias_to).collect(),
        created_ms: plan.created_ms,
    }
}

fn options_to(options: &SaveOptions) -> v1::SaveOptions {
    v1::SaveOptions {
        keep: options.keep,
        peer_copies: options.peer_copies,
        delta: options.delta,
        delta_depth_max: options.delta_depth_max,
        file_bytes_max: options.file_bytes_max,
        stage_timeout_ms: options.stage_timeout_ms,
        refuse_when_full: options.refuse_when_full,
        metadata: options.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        hf_index: options.hf_index,
        as_given: options.as_given,
    }
}

fn planned_file(file: &PlannedFile) -> v1::PlannedFile {
    let planned = |planned: &PlannedTensor| v1::PlannedTensor {
        tensor: Some(tensor_to(&planned.tensor)),
        offset_bytes: planned.offset_bytes,
        length_bytes: planned.length_bytes,
    };
    v1::PlannedFile {
        name: file.name.clone(),
        rank: file.rank,
        size_bytes: file.size_bytes,
        header: file.header.clone(),
        tensors: file.tensors.iter().map(planned).collect(),
    }
}

fn tensor_to(tensor: &SaveTensor) -> v1::SaveTensor {
    let SaveTensor { group, name, dtype, shape, start, piece_shape } = tensor.clone();
    v1::SaveTensor { group, name, dtype, shape, start, piece_shape }
}

fn alias_to(alias: &Alias) -> v1::TensorAlias {
    let Alias { group, name, target } = alias.clone();
    v1::TensorAlias { group, name, target }
}

/// A status.
pub(crate) fn status(status: &SaveStatus) -> v1::SaveStatus {
    v1::SaveStatus {
        attempt: status.attempt.to_string(),
        uri: status.uri.clone(),
        step: status.step,
        state: state(status.state).into(),
        ranks: status.ranks.iter().map(rank).collect(),
        world_size: status.world_size,
        bytes_total: status.bytes_total,
        bytes_staged: status.bytes_staged,
        bytes_durable: status.bytes_durable,
        bytes_peer: status.bytes_peer,
        bytes_uploaded: status.bytes_uploaded,
        bytes_unchanged: status.bytes_unchanged,
        error_code: status.error.as_ref().map_or_else(String::new, |error| error.code().as_str().to_owned()),
        error_message: status.error.as_ref().map_or_else(String::new, |error| error.message().to_owned()),
        notes: status.notes.clone(),
        retries: status.retries,
        staged_seconds: status.staged_seconds,
        local_durable_seconds: status.local_durable_seconds,
        peer_durable_seconds: status.peer_durable_seconds,
        committed_seconds: status.committed_seconds,
        waiting_for: status.waiting_for.clone(),
        url: status.url.clone(),
    }
}

fn rank(status: &RankStatus) -> v1::RankStatus {
    let RankStatus { rank, staged, local_durable, peer_durable } = *status;
    v1::RankStatus { rank, staged, local_durable, peer_durable }
}

fn state(state: SaveState) -> v1::SaveState {
    match state {
        SaveState::Staging => v1::SaveState::Staging,
        SaveState::Staged => v1::SaveState::Staged,
        SaveState::LocalDurable => v1::SaveState::LocalDurable,
        SaveState::Committed => v1::SaveState::Committed,
        SaveState::Failed => v1::SaveState::Failed,
        SaveState::Cancelled => v1::SaveState::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::PlanSaveRequest {
        let piece = |rank: u64| v1::SaveTensor {
            group: "optim".into(),
            name: "exp_avg".into(),
            dtype: "F32".into(),
            shape: vec![4, 2],
            start: vec![2 * rank, 0],
            piece_shape: vec![2, 2],
        };
        let items = |rank: u32| v1::RankItems {
            rank,
            tensors: vec![piece(rank.into())],
            files: vec![v1::SaveFile { name: format!("rank-{rank}.bin"), size_bytes: 7 }],
            aliases: vec![v1::TensorAlias { group: "optim".into(), name: "tied".into(), target: "exp_avg".into() }],
        };
        v1::PlanSaveRequest {
            uri: "s3://bucket/run".into(),
            step: 7,
            world_size: 2,
            ranks: vec![items(0), items(1)],
            options: Some(v1::SaveOptions {
                keep: 1,
                peer_copies: 2,
                delta: true,
                delta_depth_max: 3,
                file_bytes_max: 4 << 20,
                stage_timeout_ms: 5,
                refuse_when_full: true,
                metadata: [("loss".to_owned(), "1".to_owned())].into(),
                hf_index: true,
                as_given: true,
            }),
            join_timeout_ms: 6,
        }
    }

    #[test]
    fn a_plan_comes_back_from_the_ranks_as_it_went() {
        let plan = longshore_checkpoint::layout(plan_request(request())).unwrap();
        assert_eq!(plan.options.metadata["loss"], "1");
        assert!(plan.options.as_given && plan.options.hf_index && plan.options.refuse_when_full);
        let message = super::plan(&plan);
        assert_eq!(plan_from(message.clone()).unwrap(), plan);
        plan_from(message).unwrap().check().unwrap();
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        let plan = longshore_checkpoint::layout(plan_request(request())).unwrap();
        let mut message = super::plan(&plan);
        message.attempt = "../../etc".into();
        assert_eq!(plan_from(message).unwrap_err().code(), Code::InvalidArgument);
        let mut message = super::plan(&plan);
        message.files[0].tensors.iter_mut().for_each(|planned| planned.tensor = None);
        message.files[0].tensors.push(v1::PlannedTensor::default());
        assert_eq!(plan_from(message).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn a_status_keeps_its_error_and_its_state() {
        let status = SaveStatus {
            attempt: AttemptId::parse("0b8f4a52-3a4e-4c1e-9d52-0f4e5a6b7c8d").unwrap(),
            uri: "u".into(),
            step: 1,
            state: SaveState::Failed,
            ranks: vec![RankStatus { rank: 3, staged: true, local_durable: true, peer_durable: false }],
            world_size: 4,
            bytes_total: 1,
            bytes_staged: 2,
            bytes_durable: 3,
            bytes_peer: 4,
            bytes_uploaded: 5,
            bytes_unchanged: 6,
            error: Some(Error::new(Code::Exhausted, "no room")),
            notes: vec!["note".into()],
            retries: 7,
            staged_seconds: 0.5,
            local_durable_seconds: 1.5,
            peer_durable_seconds: 2.5,
            committed_seconds: 3.5,
            waiting_for: "room".into(),
            url: "u/step-1".into(),
        };
        let message = super::status(&status);
        assert_eq!((message.state(), message.error_code.as_str()), (v1::SaveState::Failed, "exhausted"));
        assert_eq!(
            message.ranks[0],
            v1::RankStatus { rank: 3, staged: true, local_durable: true, peer_durable: false }
        );
        let bytes = [message.bytes_total, message.bytes_staged, message.bytes_durable, message.bytes_peer];
        assert_eq!((bytes, message.bytes_uploaded, message.bytes_unchanged), ([1, 2, 3, 4], 5, 6));
    }
}
