//! What the tests of sandboxes run: as a spawner, and, inside or outside of a sandbox, as a program that tries things.

fn main() {
    brine_exec::spawner::enter();
}
