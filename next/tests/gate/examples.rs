//! Runs the examples on the embedded store, under a paused clock.

macro_rules! examples {
    ($($test:ident $name:ident $file:literal)*) => {
        $(
            #[path = $file]
            #[allow(dead_code, reason = "its `main` is not called")]
            mod $name;

            #[tokio::test(start_paused = true)]
            async fn $test() {
                let store = tenure::connect("memory:").await.unwrap();
                $name::run(&store).await.unwrap();
            }
        )*
    };
}

examples! {
    example_of_barriers_ends barrier "../../examples/barrier.rs"
    example_of_the_counter_ends counter "../../examples/counter.rs"
    example_of_the_leader_ends leader "../../examples/leader.rs"
    example_of_locks_ends lock "../../examples/lock.rs"
    example_of_the_queue_ends queue "../../examples/queue.rs"
    example_of_the_rw_lock_ends rw_lock "../../examples/rw_lock.rs"
}
