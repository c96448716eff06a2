//! ONNX Runtime: the library, loaded once a process, and a pool of single-threaded sessions.
//!
//! Promises: a session runs on one thread and is used by one caller at a time; one session a core was measured faster
//! than one session with more threads; the first session is ready when the pool is, the others load behind it. Leaves
//! out: accelerators.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use ort::environment::Environment;
use ort::session::Session;

use super::card::Family;
use crate::stage::Failure;

/// The loaded library.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// The library of this process: a shared object and its environment exist once.
static LOADED: Mutex<Option<(PathBuf, Runtime)>> = Mutex::new(None);

impl Runtime {
    /// Loads the shared library at `path`, or returns it if this process already has it.
    ///
    /// # Errors
    /// [`Failure::Model`]: it is missing, not an ONNX Runtime that we can use, or another one is already loaded.
    pub fn load(path: &Path) -> Result<Runtime, Failure> {
        // An absolute path: a bare name would be searched for in the system's folders and beside the program.
        let real = path.canonicalize().map_err(|e| failure(path, &format!("cannot be opened: {e}")))?;
        let mut loaded = locked(&LOADED);
        if let Some((known, runtime)) = &*loaded {
            if *known == real {
                return Ok(runtime.clone());
            }
            let problem = format!("this process has already loaded {}, and it can load only one", known.display());
            return Err(failure(path, &problem));
        }
        let builder = ort::init_from(&real).map_err(|e| failure(path, &e.to_string()))?;
        let builder = builder.with_name("undertone").with_telemetry(false);
        let environment = builder.build().map_err(|e| failure(path, &e.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Error);
        let runtime = Runtime { environment };
        *loaded = Some((real, runtime.clone()));
        Ok(runtime)
    }

    fn session(&self, graph: &[u8]) -> Result<Session, ort::Error> {
        // One thread within and between operators: the session's work stays on the caller's thread.
        let mut builder = Session::builder(&self.environment)?.with_intra_threads(1)?.with_inter_threads(1)?;
        builder.commit_from_memory(graph)
    }
}

fn failure(path: &Path, problem: &str) -> Failure {
    let mend =
        "run `python3 models/fetch.py` in the source folder (`make up` does it), or set `[models] onnxruntime` to \
                an ONNX Runtime library of version 1.24 or newer"
            .to_owned();
    Failure::Model { file: path.display().to_string(), problem: problem.to_owned(), mend }
}

/// Sessions of one graph.
#[derive(Debug)]
pub struct Sessions {
    shared: Arc<Shared>,
    /// Makes the other sessions; waited for at the end, because a process that exits under it reports an error.
    others: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Session>,
    /// Sessions that exist, free or in use.
    made: usize,
    /// Nobody wants further ones.
    closing: bool,
}

impl Sessions {
    /// Makes `count` sessions of the graph in `file`. The first is made and checked against the card before this
    /// returns; a thread makes the others.
    ///
    /// # Errors
    /// [`Failure::Model`]: the graph cannot be loaded, or its inputs and outputs are not what the card says.
    pub fn open(runtime: Runtime, family: &Family, file: &'static str, count: usize) -> Result<Sessions, Failure> {
        let graph = family.read(file)?;
        let first = runtime.session(&graph).map_err(|e| family.failure(file, e))?;
        let listed = family.listed(file)?;
        let names = |outlets: &[ort::value::Outlet]| outlets.iter().map(|o| o.name().to_owned()).collect::<Vec<_>>();
        for (what, found, expected) in
            [("inputs", names(first.inputs()), &listed.inputs), ("outputs", names(first.outputs()), &listed.outputs)]
        {
            if found != *expected {
                return Err(family.failure(file, format!("its {what} are {found:?}, its card says {expected:?}")));
            }
        }
        let state = Mutex::new(State { free: vec![first], made: 1, closing: false });
        let shared = Arc::new(Shared { state, returned: Condvar::new() });
        let weak = Arc::downgrade(&shared);
        let others = (count > 1).then(|| thread::spawn(move || make_others(&runtime, &graph, count, &weak)));
        Ok(Sessions { shared, others })
    }

    /// How many sessions exist by now.
    pub fn made(&self) -> usize {
        locked(&self.shared.state).made
    }

    /// Lends a session to `work`; waits until one is free. The wait is bounded by the other callers' runs: who holds a
    /// session waits for nothing.
    pub fn with<R>(&self, work: impl FnOnce(&mut Session) -> R) -> R {
        let mut state = locked(&self.shared.state);
        let session = loop {
            if let Some(session) = state.free.pop() {
                break session;
            }
            state = self.shared.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let mut lent = Lent { shared: &self.shared, session: Some(session) };
        work(lent.session.as_mut().expect("it goes back only when dropped"))
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        locked(&self.shared.state).closing = true;
        // A panic there was told by the panic hook.
        let _ = self.others.take().map(JoinHandle::join);
    }
}

/// Makes sessions until there are `count`, or nobody wants them any more.
fn make_others(runtime: &Runtime, graph: &[u8], count: usize, shared: &Weak<Shared>) {
    for _ in 1..count {
        if shared.upgrade().is_none_or(|shared| locked(&shared.state).closing) {
            return;
        }
        let session = match runtime.session(graph) {
            Ok(session) => session,
            // The same bytes loaded once already, so this is a want of memory: go on with the sessions that exist.
            Err(error) => {
                tracing::warn!(error = %error, "make a further model session; going on with fewer");
                return;
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        let mut state = locked(&shared.state);
        state.free.push(session);
        state.made += 1;
        drop(state);
        shared.returned.notify_one();
    }
}

/// A session on loan; it goes back when dropped, also by a panic.
struct Lent<'a> {
    shared: &'a Shared,
    session: Option<Session>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        locked(&self.shared.state).free.extend(self.session.take());
        self.shared.returned.notify_one();
    }
}

/// The state stays whole if a holder panics: each change is one push or pop.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
