//! Leaves whose blocks have slots.

use super::*;

#[test]
fn a_write_over_two_blocks_is_found_by_the_live_map() {
    let home = Home::packed();
    let leaf = home.open();
    write(&leaf, 1, 1, 1).unwrap();
    leaf.write_zeroes(range(2, 1)).unwrap();
    write(&leaf, live_map::PAGE_SECTORS + 1, 1, 2).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    let leaf = home.open();
    write(&leaf, 7, 2, 3).unwrap();
    write(&leaf, 7, 2, 4).unwrap();
    drop(leaf);
    let leaf = home.open();
    assert!(is_all(&read(&leaf, 7, 2), 4));
    assert!(is_all(&read(&leaf, 1, 1), 1));
}
