"""Which cells are where: budgets, who leaves and who comes, the store on the host."""
