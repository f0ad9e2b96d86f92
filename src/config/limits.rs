//! Every limit and default of the configuration, in one place.
//!
//! `docs/configuration.md` repeats them for people; a test holds the two
//! together.

/// VMs that one process serves.
pub const VMS_MAX: usize = 1024;

/// Root images that one process opens.
pub const ROOTS_MAX: usize = 256;

/// Characters in the name of a VM or a root.
pub const NAME_LEN_MAX: usize = 64;

/// Names that no VM may have, because RUNTIME/NAME.sock is taken: the control
/// socket.
pub const VM_NAMES_RESERVED: [&str; 1] = ["control"];

/// The control socket in the runtime directory.
pub const CONTROL_SOCKET_NAME: &str = "control.sock";

/// Bytes in a socket's path: `sun_path` holds 108 with the NUL (unix(7)).
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// Characters in a path: Linux takes 4096 bytes with the NUL (PATH_MAX, limits.h).
pub const PATH_LEN_MAX: usize = 4095;

/// Virtqueues of one VM.
pub const QUEUES_MAX: u16 = 64;

/// Virtqueues of a VM that does not say.
pub const QUEUES_DEFAULT: u16 = 1;

/// Descriptors in one virtqueue, as `leafblk qemu-args` suggests.
pub const QUEUE_SIZE_SUGGESTED: u16 = 256;

/// The cache arena consists of 2 MiB pages: its size is a multiple of them.
pub const CACHE_SIZE_UNIT_BYTES: u64 = 2 << 20;

/// The smallest cache arena.
pub const CACHE_SIZE_MIN_BYTES: u64 = 16 << 20;

/// The largest cache arena.
pub const CACHE_SIZE_MAX_BYTES: u64 = 16 << 40;

/// The cache arena where none is asked for, unless a quarter of the host's
/// memory is less.
pub const CACHE_SIZE_DEFAULT_BYTES: u64 = 1 << 30;

/// The smallest cache block; a power of two.
pub const CACHE_BLOCK_MIN_BYTES: u32 = 4 << 10;

/// The largest cache block; a power of two, and a whole page of the arena.
pub const CACHE_BLOCK_MAX_BYTES: u32 = 2 << 20;

/// The cache block where none is asked for.
pub const CACHE_BLOCK_DEFAULT_BYTES: u32 = 64 << 10;

/// Reactor threads.
pub const REACTORS_MAX: usize = 64;

/// Reactor threads where none are asked for: half the CPUs, at least one, at
/// most this many.
pub const REACTORS_DEFAULT_MAX: usize = 4;

/// How long a reactor may poll after its last work, in microseconds.
pub const POLL_US_MAX: u32 = 10_000;

/// How long a reactor polls after its last work where nothing is asked for.
pub const POLL_US_DEFAULT: u32 = 50;

/// The largest virtual disk: what a leaf can have.
pub const DISK_SIZE_MAX_BYTES: u64 = crate::leaf::SIZE_MAX;

/// Bytes of a configuration file that are read; a larger one is a mistake.
pub const CONFIG_FILE_MAX_BYTES: u64 = 4 << 20;
