//! How a client's session begins, or goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use longshore_memory::slabs::ControlPage;
use longshore_types::{Code, Error, Result, format_bytes};
use tokio::sync::{Notify, mpsc};

use super::grow;
use super::key::{SessionId, SessionName, SlabKey};
use super::shared::{Shared, closing};
use super::table::{Client, Growth, Held, Use};
use super::{SLAB_SESSIONS_MAX, SlabEvent, SlabSession};

/// Who begins a session.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlabHello {
    /// The user of the client's process.
    pub uid: u32,
    /// To go on with.
    pub session: Option<SessionId>,
    /// What it will stage at a time, 0 when it does not know: memory is prepared.
    pub expected_bytes: u64,
    /// Clients of this node that will stage at the same time, itself included; 0 when it does not know.
    pub clients: u32,
}

/// The answer to [`SlabHello`].
#[derive(Debug, Clone)]
pub struct SlabWelcome {
    /// Its session.
    pub session: SessionId,
    /// What is sealed and not yet durable, of a session that is gone on with.
    pub sealed: Vec<SlabKey>,
}

pub(super) async fn hello(shared: &Arc<Shared>, hello: SlabHello) -> Result<(SlabSession, SlabWelcome)> {
    if shared.is_closing() {
        return Err(closing());
    }
    check_clients(shared, hello.clients)?;
    let expected_slabs = hello.expected_bytes.div_ceil(shared.slab_bytes);
    let session = match hello.session {
        Some(id) => resume(shared, id, hello, expected_slabs)?,
        None => {
            let shared = shared.clone();
            let made = tokio::task::spawn_blocking(move || begin(&shared, hello, expected_slabs)).await;
            made.map_err(|error| Error::new(Code::Internal, format!("a session could not be made: {error}")))??
        }
    };
    let mut tables = shared.tables.lock();
    let held = tables.session(session.id())?;
    let sealed = held.slabs.iter().filter_map(|slab| match slab.used {
        Use::Sealed { key } => Some(key),
        Use::Free | Use::Filling { .. } => None,
    });
    let welcome = SlabWelcome { session: session.id(), sealed: sealed.collect() };
    if expected_slabs > 0 {
        grow::start(shared, &mut tables, session.id());
    }
    drop(tables);
    Ok((session, welcome))
}

/// Clients without a slab would wait for others that never give theirs back.
fn check_clients(shared: &Shared, clients: u32) -> Result<()> {
    let slabs = shared.budget.capacity;
    if u64::from(clients) <= slabs {
        return Ok(());
    }
    let message = format!(
        "{clients} processes of this node are to save at the same time, and there is shared memory for {slabs} slabs of {}; \
         raise --checkpoint-memory to one for each, better two",
        format_bytes(shared.slab_bytes)
    );
    Err(Error::new(Code::Exhausted, message))
}

/// A place in the channel for the end of a session; there are as many as there may be sessions.
pub(super) fn farewell(shared: &Shared) -> Result<mpsc::OwnedPermit<SlabEvent>> {
    shared.events.clone().try_reserve_owned().map_err(|_| too_many())
}

fn too_many() -> Error {
    let message = format!("there are {SLAB_SESSIONS_MAX} sessions already; end some of the processes that save");
    Error::new(Code::Exhausted, message)
}

fn resume(shared: &Arc<Shared>, id: SessionId, hello: SlabHello, expected_slabs: u64) -> Result<SlabSession> {
    let mut tables = shared.tables.lock();
    let unknown = || Error::new(Code::NotFound, format!("session {id} does not wait for its client; begin a new one"));
    let held = tables.sessions.get_mut(&id).ok_or_else(unknown)?;
    if held.uid != hello.uid {
        return Err(Error::new(Code::PermissionDenied, format!("session {id} belongs to another user")));
    }
    if held.client != Client::Away || held.is_closed_to_grants {
        return Err(unknown());
    }
    if held.farewell.is_none() {
        held.farewell = Some(farewell(shared)?);
    }
    held.client = Client::Here;
    held.connections += 1;
    let connections = held.connections;
    held.expected_slabs = expected_slabs;
    held.clients = u64::from(hello.clients);
    let (control, changed) = (held.control.clone(), held.changed.clone());
    drop(tables);
    Ok(SlabSession::new(shared, id, connections, control, changed))
}

/// Makes folder and control page. Blocks.
fn begin(shared: &Arc<Shared>, hello: SlabHello, expected_slabs: u64) -> Result<SlabSession> {
    let id = SessionId::random();
    let farewell = farewell(shared)?;
    if shared.tables.lock().sessions.len() >= SLAB_SESSIONS_MAX {
        return Err(too_many());
    }
    let records = u32::try_from(shared.budget.capacity).unwrap_or(u32::MAX);
    let control_bytes = ControlPage::len_bytes(records, shared.folder.page_bytes());
    let reservation = shared.memory.try_reserve(control_bytes).ok_or_else(|| {
        Error::new(Code::Exhausted, "no memory for a further session; raise --checkpoint-memory, or try again later")
    })?;
    let name = SessionName { id, uid: hello.uid, slab_bytes: shared.slab_bytes }.to_string();
    let folder = shared.folder.create_session(&name)?;
    let control = ControlPage::create(&folder, records, reservation).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = shared.folder.remove_session(&name);
    })?;
    let (control, changed) = (Arc::new(control), Arc::new(Notify::new()));
    let held = Held {
        name,
        uid: hello.uid,
        client: Client::Here,
        folder: Arc::new(folder),
        control: control.clone(),
        pieces: Vec::new(),
        slabs: Vec::new(),
        is_closed_to_grants: false,
        generation: 0,
        expected_slabs,
        clients: u64::from(hello.clients),
        growth: Growth::default(),
        queue: VecDeque::new(),
        next_ticket: 0,
        changed: changed.clone(),
        connections: 1,
        farewell: Some(farewell),
    };
    shared.tables.lock().sessions.insert(id, held);
    Ok(SlabSession::new(shared, id, 1, control, changed))
}
