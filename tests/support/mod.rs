//! Starting real processes under mpirun, for tests.

// Every test binary compiles this module for itself and uses its own part of it.
#![allow(dead_code)]

pub mod autograd;
pub mod table;

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// `mpirun` for `ranks` processes on this host: unbound, as many as asked whatever the cores.
/// Append the program and its arguments.
///
/// It is the one on the PATH, or that of the virtual environment beside Cargo.toml.
///
/// # Panics
/// If there is none: a test of several ranks that did not run has not passed.
pub fn mpirun(ranks: usize) -> Command {
    let program = find_mpirun().expect(
        "no mpirun on the PATH or in .venv/bin; run launch/setup.sh, or install Open MPI, to test several ranks",
    );
    let mut command = Command::new(&program);
    // A virtual environment holds an Open MPI that was moved after its installation.
    let prefix = program.parent().and_then(Path::parent).filter(|prefix| prefix.join("pyvenv.cfg").exists());
    if let Some(prefix) = prefix {
        command.env("OPAL_PREFIX", prefix);
    }
    if is_open_mpi(&program, prefix) {
        command.args(["--bind-to", "none", "--oversubscribe"]);
        // Shared memory alone, without a search for networks: start-up 0.8 s instead of 2.2 s.
        command.args(["--mca", "pml", "ob1", "--mca", "btl", "^ofi,tcp"]);
        command.args(["--mca", "orte_tmpdir_base"]).arg(own_session_directory());
        if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            command.arg("--allow-run-as-root");
        }
    }
    command.arg("-n").arg(ranks.to_string());
    command
}

fn find_mpirun() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin");
    std::env::split_paths(&path).chain([venv]).map(|folder| folder.join("mpirun")).find(|file| file.is_file())
}

/// A folder of its own for each job that this process starts.
///
/// Jobs that share one, as all of a user do by default, fail now and then when they start or end at the same moment: one
/// finds the folder missing, another makes it, and the first calls that an error (1 of 300 jobs, four at a time). The
/// folders stay, empty.
fn own_session_directory() -> PathBuf {
    static JOBS: AtomicUsize = AtomicUsize::new(0);
    let job = JOBS.fetch_add(1, Ordering::Relaxed);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("mpi").join(format!("{}-{job}", std::process::id()))
}

/// The options above are Open MPI's; other launchers need and know none of them.
fn is_open_mpi(program: &Path, prefix: Option<&Path>) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").envs(prefix.map(|prefix| ("OPAL_PREFIX", prefix)));
    let said = command.output().expect("mpirun can be run").stdout;
    String::from_utf8_lossy(&said).contains("Open MPI")
}

/// What became of a command.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code.
    pub code: i32,
    /// Standard output, then standard error.
    pub output: String,
    /// From its start to its end, or from when it was waited for.
    pub elapsed: Duration,
}

/// Runs a command to its end.
///
/// # Panics
/// If it takes longer than `limit` (the command is killed), or dies from a signal.
pub fn run_within(command: Command, limit: Duration) -> Finished {
    Running::start(command).end_within(limit)
}

/// A command on its way, whose output is being read.
pub struct Running {
    command: Command,
    child: Child,
    output: Vec<std::thread::JoinHandle<String>>,
}

impl Running {
    /// Starts a command, whose ranks have one thread unless it or their configuration says otherwise: tests run side by side, and
    /// OpenMP's threads that wait for each other on fewer cores than they are can take a hundred times as long.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Self {
        if command.get_envs().all(|(name, _)| name != "OMP_NUM_THREADS") {
            command.env("OMP_NUM_THREADS", "1");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let output = vec![
            read_all(child.stdout.take().expect("stdout is piped")),
            read_all(child.stderr.take().expect("stderr is piped")),
        ];
        Running { command, child, output }
    }

    /// Its process: that of the launcher, not of a rank.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// Waits for its end; the time counts from now.
    ///
    /// # Panics
    /// If that takes longer than `limit` (the command is killed), or it dies from a signal.
    pub fn end_within(mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        let (child, command) = (&mut self.child, &self.command);
        let status = loop {
            match child.try_wait().expect("the child can be waited for") {
                Some(status) => break Some(status),
                None if start.elapsed() > limit => break None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let elapsed = start.elapsed();
        if status.is_none() {
            child.kill().expect("the child can be killed");
            let _ = child.wait();
        }
        let output: String = std::mem::take(&mut self.output)
            .into_iter()
            .map(|reader| reader.join().expect("the reader ends"))
            .collect();
        let Some(status) = status else { panic!("{command:?} runs for more than {limit:?}:\n{output}") };
        let code = status
            .code()
            .unwrap_or_else(|| panic!("{command:?} got signal {:?}:\n{output}", status.signal()));
        Finished { code, output, elapsed }
    }
}

/// A test that fails leaves no job behind.
impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("the child's output can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs one `#[ignore]`d test of the calling test binary, `body`, on several ranks: so a test
/// brings its own program, and no helper is built or shipped.
pub fn run_body(ranks: usize, body: &str, environment: &[(&str, &str)]) -> Finished {
    let mut command = mpirun(ranks);
    command.envs(environment.iter().copied());
    append_body(&mut command, body);
    run_within(command, Duration::from_secs(60))
}

/// Runs `body` on several ranks, all of which must pass.
///
/// The exit code says so: one failing rank makes mpirun's non-zero. Lines of the ranks may be cut up in each
/// other, so they are not counted; that the body ran at all shows in the first.
#[track_caller]
pub fn assert_all_passed(ranks: usize, body: &str) {
    let job = run_body(ranks, body, &[]);
    assert_eq!(job.code, 0, "{}", job.output);
    assert!(
        job.output.contains("running 1 test") && !job.output.contains("running 0 tests"),
        "{}",
        job.output
    );
}

/// Appends the calling test binary and what makes it run `body` only.
pub fn append_body(command: &mut Command, body: &str) {
    command.arg(std::env::current_exe().expect("this test has a path"));
    command.args(["--ignored", "--exact", body, "--nocapture", "--test-threads=1"]);
}
