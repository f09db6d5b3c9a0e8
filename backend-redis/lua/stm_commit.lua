-- uses: stm, commit
-- A transaction that is bound to no guard: see `commit`.
return commit()
