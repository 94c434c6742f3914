"""What every task's training needs."""
