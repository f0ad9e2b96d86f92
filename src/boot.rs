//! Which boot this is: what outlives the process, but not the machine, says in
//! which one it was made.

use std::io;
use std::sync::OnceLock;

use uuid::Uuid;

/// The kernel's id of this boot (random(4), `boot_id`). Read once: it doesn't
/// change.
///
/// # Errors
/// As read(2), where /proc isn't mounted; InvalidData for what is no id.
pub(crate) fn id() -> io::Result<Uuid> {
    static ID: OnceLock<Uuid> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(*id);
    }
    let text = crate::io::open::kernel_text("/proc/sys/kernel/random/boot_id")?;
    let id =
        Uuid::parse_str(text.trim()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(*ID.get_or_init(|| id))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_id_is_the_kernels_in_its_spelling() {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(super::id().unwrap().to_string(), text.trim());
    }
}
