//! The cases of limits that the mutants of `squares.rs` prove, beside those of the table.

pub(crate) const LIMITS: &[&str] = &[
    "t5_values_of_every_size_come_back",
    "t5_every_operation_counts",
    "t2_a_delete_deletes",
    "q1_items_of_every_size_come_back",
    "e4_values_of_every_size_are_seen",
    "q2_a_whole_batch_comes_back",
    "q3_every_priority_counts",
    "q1_a_deep_queue_is_whole",
    "l3_two_hundred_waiters_are_served",
];
