//! Reads a VM's disk through its vhost-user socket, as a hypervisor would, and
//! prints its size and how many of its bytes are no zeros, then writes them to
//! stdout if asked to:
//!
//!     cargo run --example read_disk -- /run/leafblk/web1.sock --dump | sha256sum
//!
//! A look at a VM's disk without a VM, and at whether a user may connect.
#![expect(
    clippy::print_stderr,
    unsafe_code,
    reason = "a command-line tool; libblkio's memory is raw"
)]

use std::error::Error;
use std::io::Write;

use blkio::{Blkio, Completion, ReqFlags};

/// Bytes of one request.
const STEP: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: read_disk SOCKET [--dump]")?;
    let dump = args.next().as_deref() == Some("--dump");

    let mut blkio = Blkio::new("virtio-blk-vhost-user")?;
    blkio.set_str("path", &path)?;
    blkio.set_bool("read-only", true)?;
    blkio.connect()?;
    let capacity = blkio.get_u64("capacity")?;
    blkio.set_i32("num-queues", 1)?;
    let mut queue = blkio.start()?.queues.remove(0);
    let region = blkio.alloc_mem_region(STEP)?;
    blkio.map_mem_region(&region)?;

    let mut out = std::io::stdout().lock();
    let (mut at, mut bytes_set) = (0, 0);
    while at < capacity {
        let len = usize::try_from(capacity - at).unwrap_or(STEP).min(STEP);
        queue.read(at, region.addr as *mut u8, len, 0, ReqFlags::empty());
        let mut done = [std::mem::MaybeUninit::<Completion>::uninit()];
        queue.do_io(&mut done, 1, None, None)?;
        // SAFETY: one completion was waited for.
        let result = unsafe { done[0].assume_init_ref() }.ret;
        if result != 0 {
            return Err(format!("the read at {at} fails with {result}").into());
        }
        // SAFETY: the region is mapped, and no request is under way.
        let data = unsafe { std::slice::from_raw_parts(region.addr as *const u8, len) };
        bytes_set += data.iter().filter(|byte| **byte != 0).count();
        if dump {
            out.write_all(data)?;
        }
        at += len as u64;
    }
    eprintln!("{path}: {capacity} bytes, {bytes_set} of them no zeros");
    Ok(())
}
