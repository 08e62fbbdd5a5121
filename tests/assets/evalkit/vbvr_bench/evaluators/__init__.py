TASK_CATEGORY_MAP = {
    "G-1_circle_data-generator": "Perception",
    "G-2_count_data-generator": "Knowledge",
}
