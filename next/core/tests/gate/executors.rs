//! The library's thread, and other places where its work runs.

use std::cell::RefCell;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tenure_core::ErrorKind;
use tenure_core::executor::{Executor, is_library_thread};
use tokio::runtime::{Builder, Handle};

/// A runtime without timers: whatever needs one there panics.
fn without_timers() -> tokio::runtime::Runtime {
    Builder::new_current_thread().build().unwrap()
}

async fn library_thread() -> (thread::ThreadId, Option<String>, bool) {
    let current = async {
        let thread = thread::current();
        (thread.id(), thread.name().map(str::to_owned), is_library_thread())
    };
    Executor::library().unwrap().spawn(current).await.unwrap()
}

#[test]
fn library_is_one_thread_for_all_runtimes_of_the_process() {
    let first = without_timers().block_on(library_thread());
    // The first runtime has ended.
    let second = without_timers().block_on(library_thread());
    assert_eq!(first, second);
    assert_eq!((first.1.as_deref(), first.2), (Some("tenure"), true));
    assert!(!is_library_thread());
}

#[test]
fn library_continues_after_a_task_panicked() {
    let library = Executor::library().unwrap();
    let panicked = without_timers().block_on(library.spawn(async { panic!("on purpose") }));
    assert!(panicked.unwrap_err().is_panic());
    assert!(without_timers().block_on(library_thread()).2);
}

#[test]
fn library_runs_tasks_without_any_runtime_of_the_caller() {
    let (send, receive) = mpsc::channel();
    let work = async move {
        tokio::time::sleep(Duration::from_millis(1)).await; // real time: a timer must fire
        send.send(is_library_thread()).unwrap();
    };
    drop(Executor::library().unwrap().spawn(work));
    assert!(receive.recv().unwrap());
}

#[test]
fn work_in_place_has_the_timers_of_the_executor_and_the_thread_of_the_caller() {
    let library = Executor::library().unwrap();
    let work = async {
        tokio::time::sleep(Duration::from_millis(1)).await; // real time: a timer must fire
        is_library_thread()
    };
    assert!(!without_timers().block_on(library.run_in_place(work)));
}

#[test]
fn current_runtime_is_refused_outside_one() {
    assert_eq!(Executor::current().unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn current_and_given_runtimes_are_not_the_library() {
    let current = Executor::current().unwrap();
    assert_eq!(current.handle().id(), Handle::current().id());
    for executor in [current, Executor::given(Handle::current())] {
        assert!(!executor.is_library());
        assert!(!executor.spawn(async { is_library_thread() }).await.unwrap());
    }
    assert!(Executor::library().unwrap().is_library());
}

#[test]
fn thread_flag_is_readable_while_the_locals_of_a_thread_are_dropped() {
    struct Reader(mpsc::Sender<bool>);

    impl Drop for Reader {
        fn drop(&mut self) {
            let _ = self.0.send(is_library_thread());
        }
    }

    thread_local! {
        static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
    }

    let (send, receive) = mpsc::channel();
    thread::spawn(move || READER.set(Some(Reader(send)))).join().unwrap();
    assert!(!receive.recv().unwrap());
}
