-- uses: all, stm, commit
-- A transaction that is bound to a guard: see `commit`. Apart, because Redis would make all that
-- knows about guards anew for every transaction.
return commit()
