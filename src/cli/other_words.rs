//! What other programs call a command that has another name here: the word that is
//! tried is answered with the one that does it, and never does anything itself.

/// What to type instead of `leafblk NOUN WORD`, where somebody would.
pub(super) fn instead(noun: &str, word: &str) -> Option<&'static str> {
    let hint = match (noun, word) {
        ("vm", "rm" | "remove" | "delete" | "del" | "destroy" | "undefine") => {
            "leafblk vm detach NAME takes a VM away and keeps its leaf; with --delete the leaf goes too"
        }
        ("vm", "reset" | "rollback" | "restore") => {
            "leafblk vm revert NAME discards every change on a VM's disk; a guest is reset by its \
             hypervisor"
        }
        ("vm", "reboot" | "restart" | "pause" | "suspend") => {
            "a guest is reset or paused by its hypervisor; leafblk has its disk only"
        }
        ("vm", "rename" | "mv" | "move") => {
            "to rename a VM: shut its guest down, leafblk vm detach OLD, then leafblk vm attach \
             NEW,root=ROOT,leaf=PATH with the leaf that leafblk vm show OLD named before"
        }
        ("vm", "add" | "create" | "new" | "start" | "define" | "run") => {
            "leafblk vm attach NAME,root=ROOT makes a VM's disk, and serves it"
        }
        ("vm", "stop" | "shutdown" | "kill") => {
            "leafblk vm detach NAME ends the service of a VM's disk and keeps its leaf; a guest is \
             shut down by its hypervisor"
        }
        ("vm", "grow" | "extend") => "leafblk vm resize NAME SIZE makes a VM's disk larger",
        ("vm", "sync") => "leafblk vm flush NAME makes what a VM has written durable",
        ("vm", "info" | "inspect" | "get" | "status" | "describe") => {
            "leafblk vm show NAME shows a VM"
        }
        ("leaf", "remove" | "delete" | "del") => "leafblk leaf rm NAME.leaf deletes a leaf",
        ("root", "rm" | "delete" | "del" | "detach") => {
            "leafblk root remove NAME takes a root away that no VM has; its file stays"
        }
        ("root", "attach" | "create" | "new" | "import") => {
            "leafblk root add NAME=PATH adds an image"
        }
        ("root", "rename" | "mv" | "move") => {
            "to rename a root: detach its VMs, leafblk root remove OLD, leafblk root add NEW=PATH, \
             then attach the VMs with root=NEW"
        }
        ("root", "info" | "inspect" | "get" | "status" | "describe") => {
            "leafblk root show NAME shows a root"
        }
        ("root", "check") => "leafblk root verify NAME compares a root with what it was",
        _ => return None,
    };
    Some(hint)
}
