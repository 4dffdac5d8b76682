//! Starting and stopping leaves nothing behind. Alone in its process, so that counts mean something.

mod node;

use node::{Node, identities};

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn sixty_rounds_leave_no_thread_and_no_descriptor() {
    let (a, b) = identities();
    let round = || {
        let (initiator, responder) = (Node::start(&a, &b), Node::start(&b, &a));
        initiator.dial(responder.addr());
        initiator.exchange();
        responder.session_up();
        responder.exchange_done();
        assert!(node::passes(&initiator.engine, &responder.engine));
    };
    // The first rounds make what the process keeps.
    round();
    let before = (count("/proc/self/task"), count("/proc/self/fd"));
    for _ in 0..60 {
        round();
    }
    assert_eq!((count("/proc/self/task"), count("/proc/self/fd")), before);
}
