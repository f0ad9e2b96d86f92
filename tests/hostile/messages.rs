//! Messages.

use std::io::Write;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::VhostUserFrontend;

use crate::common::frontend::*;
use crate::common::scene::Scene;
use crate::loses_its_connection;

#[test]
fn half_a_message_and_then_silence_harms_nobody() {
    let whole = message(1, 0, &[]);
    let with_body = message(8, 0, &[0; 8]);
    for part in [&whole[..3], &whole[..11], &with_body[..12], &with_body[..15]] {
        let mut scene = Scene::new();
        let mut stream = UnixStream::connect(&scene.victim).unwrap();
        stream.write_all(part).unwrap();
        scene.neighbour.goes_on(20);
        scene.log.wait_for(&["VM victim", "disconnected its frontend", "unfinished"]);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_closed(&stream));
        scene.all_is_well();
    }
}

#[test]
fn half_a_message_and_then_the_end_harms_nobody() {
    let mut scene = Scene::new();
    for part in [1, 3, 11, 12, 19] {
        let mut stream = UnixStream::connect(&scene.victim).unwrap();
        stream.write_all(&message(8, 0, &[0; 8])[..part]).unwrap();
        hang_up(&stream);
        scene.log.wait_for(&["VM victim: connected"]);
        scene.log.wait_for(&["VM victim: disconnected"]);
    }
    scene.all_is_well();
}

#[test]
fn a_message_that_comes_byte_by_byte_is_understood() {
    let scene = Scene::new();
    let stream = UnixStream::connect(&scene.victim).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for byte in message(1, 0, &[]) {
        (&mut &stream).write_all(&[byte]).unwrap();
        scene.neighbour.goes_on(1);
    }
    let mut reply = [0; 20];
    std::io::Read::read_exact(&mut &stream, &mut reply).unwrap();
    assert_eq!(reply[..4], 1u32.to_le_bytes());
    let features = u64::from_le_bytes(reply[12..].try_into().unwrap());
    assert!(features & VERSION_1 != 0);
    hang_up(&stream);
    scene.all_is_well();
}

#[test]
fn a_client_that_says_nothing_harms_nobody() {
    let scene = Scene::new();
    let stream = UnixStream::connect(&scene.victim).unwrap();
    scene.neighbour.goes_on(100);
    hang_up(&stream);
    scene.all_is_well();
}

#[test]
fn a_message_that_claims_gigabytes_loses_the_connection() {
    for size in [4097u32, 1 << 30, u32::MAX] {
        loses_its_connection("too long", |vmm| {
            let mut bytes = message(5, 0, &[]);
            bytes[8..12].copy_from_slice(&size.to_le_bytes());
            vmm.stream.write_all(&bytes).unwrap();
        });
    }
}

#[test]
fn a_flood_of_unknown_messages_harms_nobody() {
    let mut scene = Scene::new();
    for round in 0..100u32 {
        let mut stream = UnixStream::connect(&scene.victim).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let code = if round % 2 == 0 { 200 + round } else { u32::MAX - round };
        let flood: Vec<u8> = (0..50).flat_map(|_| message(code, 0, &[0xab; 64])).collect();
        // The backend may hang up before it has all of it.
        let _ = stream.write_all(&flood);
        assert!(is_closed(&stream));
        scene.log.wait_for(&["VM victim: disconnected its frontend"]);
    }
    scene.neighbour.goes_on(20);
    scene.all_is_well();
}

#[test]
fn random_bytes_harm_nobody() {
    let mut scene = Scene::new();
    let mut seed = 7u64;
    for _ in 0..50 {
        let mut bytes = Vec::new();
        for _ in 0..64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.extend_from_slice(&(seed >> 29).to_le_bytes()[..4]);
        }
        let mut stream = UnixStream::connect(&scene.victim).unwrap();
        let _ = stream.write_all(&bytes);
        hang_up(&stream);
        scene.log.wait_for(&["VM victim: disconnected"]);
    }
    scene.all_is_well();
}

#[test]
fn replies_that_nobody_reads_harm_nobody() {
    let mut scene = Scene::new();
    let stream = UnixStream::connect(&scene.victim).unwrap();
    stream.set_nonblocking(true).unwrap();
    let ask: Vec<u8> = (0..100).flat_map(|_| message(1, 0, &[])).collect();
    // Until both directions are full.
    let mut sent = 0;
    loop {
        match (&mut &stream).write(&ask[sent % ask.len()..]) {
            Ok(count) => sent += count,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::OUT)];
                let soon = std::time::Duration::from_secs(1).try_into().unwrap();
                if rustix::event::poll(&mut fds, Some(&soon)).unwrap() == 0 {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    // Its control thread may wait for it as long as it likes: nobody else does.
    scene.neighbour.goes_on(1000);
    hang_up(&stream);
    scene.log.wait_for(&["VM victim: disconnected"]);
    scene.all_is_well();
}

#[test]
fn writing_a_read_only_configuration_field_loses_the_connection() {
    for (offset, byte) in [(0, 1), (20, 0), (32, 7), (255, 1)] {
        loses_its_connection("writeback", |vmm| {
            let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
            assert!(vmm.frontend.set_config(offset, flags, &[byte]).is_err());
        });
    }
}
