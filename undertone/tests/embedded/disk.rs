//! The program on a disk that is really full: a small file system of its own, in memory, that no other process sees.
//!
//! Where the system lets nobody mount one, it says so and is left out.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use super::*;

/// Size of the disk: a hundred times what the program writes here.
const DISK_MIB: u32 = 64;
/// What is written at a time until nothing more fits, in bytes: less each time, down to the last byte.
const PIECES_BYTES: [usize; 3] = [1 << 20, 4096, 1];
/// How long the intake waits for the log before it says that it has none: shorter than usual, for the test's sake.
const ACKNOWLEDGE_MS: &str = "1000";

/// Refusals after which the disk is made room on.
const REFUSED: usize = 2;

/// Whether the system lets a user mount a file system that only its own processes see.
fn can_mount() -> bool {
    let script = "mount -t tmpfs -o size=1m none /tmp";
    let tried = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).output();
    tried.is_ok_and(|tried| tried.status.success())
}

/// Starts the program with its folder on a file system of its own, and says where that is for others.
async fn start(dir: &Path, variables: &[(&str, &str)]) -> (PathBuf, Program) {
    let plain = command(dir);
    let script = format!("mount -t tmpfs -o size={DISK_MIB}m none \"$0\" && exec \"$@\"");
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    wrapped.arg(dir).arg(plain.get_program()).args(plain.get_args()).arg("up");
    wrapped.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.envs(variables.iter().copied());
    wrapped.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = Program::of(wrapped).await;
    let root = PathBuf::from(format!("/proc/{}/root", program.child.0.id()));
    (root.join(dir.strip_prefix("/").expect("an absolute path")), program)
}

/// No byte more can be written, until the program itself makes room, by a shorter log of its own.
fn fill(filler: &Path) {
    let mut filler = File::options().create(true).append(true).open(filler).unwrap();
    for bytes in PIECES_BYTES {
        let piece = vec![b'x'; bytes];
        let error = loop {
            if let Err(error) = filler.write_all(&piece) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }
}

/// Says the next thing; whether it was acknowledged, and left the queue.
async fn offer(socket: &mut Socket, frames: &mut VecDeque<Frame>) -> bool {
    let frame = frames.front().expect("not everything fits on a full disk");
    socket.send(frame.message()).await.unwrap();
    loop {
        let answer = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer").unwrap().unwrap();
        let Message::Text(text) = answer else { continue };
        let answer: Value = serde_json::from_str(&text).unwrap();
        let acknowledged = answer["type"] == "ack";
        if acknowledged {
            assert_eq!(answer["id"], frame.id());
            frames.pop_front();
        }
        return acknowledged;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_acknowledges_nothing_and_everything_goes_on_when_there_is_room() {
    if !can_mount() {
        println!("left out: this system lets its users mount nothing");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let variables = [
        ("UNDERTONE__INGEST__DISK_FREE_BYTES_MIN", "0"),
        ("UNDERTONE__INGEST__ACKNOWLEDGE_MS_MAX", ACKNOWLEDGE_MS),
        // A transaction may wait for room, however busy the machine is.
        ("UNDERTONE__PROCESSORS__TRANSACTION_SECONDS_MAX", "60"),
    ];
    let (disk, mut program) = start(dir.path(), &variables).await;
    let filler = disk.join("filler");
    let all = (0..TURNS_PER_ROOM).flat_map(|number| (0..ROOMS).map(move |room| Frame { room, number }));
    let mut frames: VecDeque<Frame> = all.collect();
    let total = frames.len();
    let mut socket = program.socket().await;
    let half = speak(&mut socket, &mut frames, total / 2);
    tokio::time::timeout(PATIENCE, half).await.expect("acknowledged in time");

    // What was said last is still on its way through the processors. The last page of a file has a little room left.
    fill(&filler);
    let mut refused = 0;
    while refused < REFUSED {
        if offer(&mut socket, &mut frames).await {
            fill(&filler);
        } else {
            refused += 1;
        }
    }
    assert!(program.child.0.try_wait().unwrap().is_none(), "it waits for room");
    std::fs::remove_file(&filler).unwrap();

    let mut socket = program.socket().await;
    let begun = Instant::now();
    while !frames.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "every frame is acknowledged");
        // The log may need a moment until it takes records again.
        offer(&mut socket, &mut frames).await;
    }
    let said = expect_all_and_end(program, total).await;
    assert!(said.contains("No space left on device"), "{said}");
}
