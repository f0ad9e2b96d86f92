//! Which VM a leaf belongs to, as the leafblk that serves it says.

use std::path::Path;

use crate::config::Settings;
use crate::control::VmInfo;
use crate::control::client::Client;
use crate::tools::RuntimeDir;

/// The VM that has the leaf, of the leafblk with that runtime directory; `None` where
/// there is none, or it doesn't say.
pub(super) fn vm_of(leaf: &Path, runtime_dir: &RuntimeDir) -> Option<String> {
    let settings = Settings { runtime_dir: runtime_dir.given.clone(), ..Settings::default() };
    let socket = settings.control_socket(&runtime_dir.env).ok()??;
    let client = Client::new(&socket);
    let vms: Vec<VmInfo> = client.read(client.get("/v1/vms").ok()?).ok()?;
    let has_it = |vm: &VmInfo| Path::new(&vm.leaf).canonicalize().is_ok_and(|its| its == leaf);
    vms.into_iter().find(has_it).map(|vm| vm.name)
}
